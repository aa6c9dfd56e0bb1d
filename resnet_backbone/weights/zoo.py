"""Named weights: ``open-mmlab://NAME`` in mmdet's configs, and where the same weights are still available.

``download.openmmlab.com``, where these names lead, stopped responding in June 2026. Most of its backbone files were
converted from weights that others had released, and those releases are still online. ``relation`` is how an entry's
source relates to OpenMMLab's file:

* ``SAME``: the release that the file was converted from, with the same numbers under other names. It is used instead.
* ``RETRAINED``: the same network, trained again. It is never substituted silently: loading fails and suggests it.
* ``NONE``: a different network; loading fails and suggests it as the closest one.

The origins are taken from the documentation of OpenMMLab and of the releases. The tensors were not compared, because
OpenMMLab's files are no longer available.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

from .preprocessing import DETECTRON_BGR, IMAGENET_RGB, MSRA_BGR, PYCLS_BGR, RESNEST_RGB, Preprocessing

__all__ = ["NAMED", "NamedWeights", "by_file", "by_name", "by_source", "by_url", "is_named"]

Relation = Literal["SAME", "RETRAINED", "NONE"]

_SERVER = "https://download.openmmlab.com"
_D1 = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained"
_D2 = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained"
_PYCLS = "https://dl.fbaipublicfiles.com/pycls/dds_baselines"
_RESNEST = "https://s3.us-west-1.wasabisys.com/resnest/detectron"
_RES2NET = "https://shanghuagao.oss-cn-beijing.aliyuncs.com/res2net"


class NamedWeights(NamedTuple):
    """Weights that configs refer to by name.

    Attributes:
        name: The name after ``open-mmlab://``, or the last part of the URL for a file that configs refer to by URL.
        original: OpenMMLab's URL.
        relation: How ``source`` relates to OpenMMLab's file: see the module's docstring.
        source: Source of the same, or of the closest, weights.
        origin: Who trained the weights.
        preprocessing: The preprocessing that OpenMMLab's file expects.
        style: Style of its Bottlenecks: ``'pytorch'`` or ``'caffe'``.
    """

    name: str
    original: str
    relation: Relation
    source: str
    origin: str
    preprocessing: Preprocessing
    style: str = "pytorch"


def _third_party(
    relation: Relation,
    name: str,
    file: str,
    source: str,
    origin: str,
    preprocessing: Preprocessing = IMAGENET_RGB,
    style: str = "pytorch",
) -> NamedWeights:
    original = f"{_SERVER}/pretrain/third_party/{file}.pth"
    return NamedWeights(name, original, relation, source, origin, preprocessing, style)


_same = partial(_third_party, "SAME")
_retrained = partial(_third_party, "RETRAINED")
_none = partial(_third_party, "NONE")
_MSRA2 = "MSRA's original weights, by way of detectron2"
_DETECTRON = "Detectron (FAIR), Caffe2"
_MSRA1 = f"MSRA's original weights, by way of {_DETECTRON}"
_FAIR = "FAIR's own training, by way of detectron2"
_JHU = "Weight Standardization's authors (Johns Hopkins University)"
_ENCODING = "PyTorch-Encoding"
_LOST = "OpenMMLab, which did not record the training"

NAMED: tuple[NamedWeights, ...] = (
    _same("detectron2/resnet50_caffe", "resnet50_msra-5891d200", f"{_D2}/MSRA/R-50.pkl", _MSRA2, MSRA_BGR, "caffe"),
    _same("detectron2/resnet101_caffe", "resnet101_msra-6cc46731", f"{_D2}/MSRA/R-101.pkl", _MSRA2, MSRA_BGR, "caffe"),
    _same("detectron2/resnext101_32x8d", "resnext101_32x8d-1516f1aa", f"{_D2}/FAIR/X-101-32x8d.pkl", _FAIR, PYCLS_BGR),
    *(
        _same(f"detectron/{name}_caffe", f"{name}_caffe-{digest}", f"{_D1}/{path}", _MSRA1, DETECTRON_BGR, "caffe")
        for name, digest, path in (
            ("resnet50", "788b5fa3", "MSRA/R-50.pkl"),
            ("resnet101", "3ad79236", "MSRA/R-101.pkl"),
        )
    ),
    _same("detectron/resnet50_gn", "resnet50_gn-9186a21c", f"{_D1}/47261647/R-50-GN.pkl", _DETECTRON, MSRA_BGR),
    _same("detectron/resnet101_gn", "resnet101_gn-cac0ab98", f"{_D1}/47592356/R-101-GN.pkl", _DETECTRON, MSRA_BGR),
    _retrained(
        "contrib/resnet50_gn",
        "resnet50_gn_thangvubk-ad1730dd",
        "timm://resnet50_gn.a1h_in1k",
        "a contributor's own training (thangvubk)",
    ),
    *(
        _none(f"jhu/{name}", f"{name}-{digest}", source, _JHU)
        for name, digest, source in (
            ("resnet50_gn_ws", "15beedd8", "timm://resnet50_gn.a1h_in1k"),
            ("resnet101_gn_ws", "3e3c308c", "open-mmlab://detectron/resnet101_gn"),
            ("resnext50_32x4d_gn_ws", "0d87ac85", "torchvision://resnext50_32x4d"),
            ("resnext101_32x4d_gn_ws", "34ac1a9e", "timm://resnext101_32x4d.gluon_in1k"),
            ("resnext50_32x4d_gn", "c7e8b754", "torchvision://resnext50_32x4d"),
            ("resnext101_32x4d_gn", "ac3bb84e", "timm://resnext101_32x4d.gluon_in1k"),
        )
    ),
    _retrained("resnext50_32x4d", "resnext50-32x4d-0ab1a123", "torchvision://resnext50_32x4d", _LOST),
    _retrained("resnext101_32x4d", "resnext101_32x4d-a5af3160", "timm://resnext101_32x4d.gluon_in1k", _LOST),
    _retrained("resnext101_64x4d", "resnext101_64x4d-ee2c6f71", "torchvision://resnext101_64x4d", _LOST),
    *(
        _same(f"regnetx_{size}", f"regnetx_{size}-{digest}", f"{_PYCLS}/{release}", "pycls (FAIR)", PYCLS_BGR)
        for size, digest, release in (
            ("400mf", "a5b10d96", "160905967/RegNetX-400MF_dds_8gpu.pyth"),
            ("800mf", "1f4be4c7", "160906036/RegNetX-800MF_dds_8gpu.pyth"),
            ("1.6gf", "5791c176", "160990626/RegNetX-1.6GF_dds_8gpu.pyth"),
            ("3.2gf", "c2599b0f", "160906139/RegNetX-3.2GF_dds_8gpu.pyth"),
            ("4.0gf", "a88f671e", "160906383/RegNetX-4.0GF_dds_8gpu.pyth"),
            ("6.4gf", "006af45d", "161116590/RegNetX-6.4GF_dds_8gpu.pyth"),
            ("8.0gf", "3c68abe7", "161107726/RegNetX-8.0GF_dds_8gpu.pyth"),
            ("12gf", "4c2a3350", "160906020/RegNetX-12GF_dds_8gpu.pyth"),
        )
    ),
    *(
        _same(name, f"{name}_d2-{digest}", f"{_RESNEST}/{file}", "ResNeSt's authors, for detectron2", RESNEST_RGB)
        for name, digest, file in (
            ("resnest50", "7497a55b", "resnest50_detectron-255b5649.pth"),
            ("resnest101", "f3b931b2", "resnest101_detectron-486f69a8.pth"),
            ("resnest200", "ca88e41f", "resnest200_detectron-02644020.pth"),
        )
    ),
    _same(
        "res2net101_v1d_26w_4s",
        "res2net101_v1d_26w_4s_mmdetv2-f0a600f9",
        f"{_RES2NET}/res2net101_v1b_26w_4s-0812c246.pth",
        "Res2Net's authors, who call this network v1b",
    ),
    _none("resnet18_v1c", "resnet18_v1c-b5776b93", "timm://resnet18d.ra2_in1k", _ENCODING),
    _retrained("resnet50_v1c", "resnet50_v1c-2cccc1ad", "timm://resnet50c.gluon_in1k", _ENCODING),
    _retrained("resnet101_v1c", "resnet101_v1c-e67eebb6", "timm://resnet101c.gluon_in1k", _ENCODING),
    *(
        NamedWeights(
            file, f"{_SERVER}/mmclassification/v0/resnet/{file}", "RETRAINED", source, "mmpretrain", IMAGENET_RGB
        )
        for file, source in (
            ("resnet50_8xb256-rsb-a1-600e_in1k_20211228-20e21305.pth", "timm://resnet50.a1_in1k"),
            ("resnet50_batch256_imagenet_20200708-cfb998bf.pth", "torchvision://resnet50"),
        )
    ),
)

# Releases whose preprocessing and style do not follow from their parameter names.
_RELEASES: dict[str, tuple[Preprocessing, str]] = {
    f"{_D2}/torchvision/R-50.pkl": (IMAGENET_RGB, "pytorch"),
    f"{_D2}/torchvision/R-101.pkl": (IMAGENET_RGB, "pytorch"),
    # According to detectron2's catalog, all of Detectron's weights expect a standard deviation of 1.
    f"{_D1}/20171220/X-101-32x8d.pkl": (DETECTRON_BGR, "pytorch"),
    f"{_D1}/FBResNeXt/X-101-64x4d.pkl": (DETECTRON_BGR, "pytorch"),
    f"{_D1}/25093814/X-152-32x8d-IN5k.pkl": (DETECTRON_BGR, "pytorch"),
}


def by_name(name: str) -> NamedWeights | None:
    """Find the entry of a name after ``open-mmlab://``."""
    return next((entry for entry in NAMED if entry.name == name), None)


def by_url(url: str) -> NamedWeights | None:
    """Find the entry of one of OpenMMLab's URLs, http or https."""
    bare = url.partition("://")[2]
    return next((entry for entry in NAMED if entry.original.partition("://")[2] == bare), None)


def by_file(name: str) -> NamedWeights | None:
    """Find the entry of one of OpenMMLab's files by the file's name."""
    return next((entry for entry in NAMED if entry.original.endswith(f"/{name}")), None)


def is_named(source: str) -> bool:
    """Whether a source is one of the names in the table, or the URL that such a name stood for."""
    scheme, _, name = source.partition("://")
    return by_url(source) is not None or (scheme in ("open-mmlab", "openmmlab") and by_name(name) is not None)


def by_source(url: str) -> tuple[Preprocessing, str] | None:
    """Return the preprocessing and the style of the weights at a release's URL, if known."""
    for entry in NAMED:
        if entry.relation == "SAME" and entry.source == url:
            return entry.preprocessing, entry.style
    return _RELEASES.get(url)
