"""Named weights: what mmdet's configs call ``open-mmlab://NAME``, and where the same weights can still be had.

``download.openmmlab.com``, which these names stand for, stopped answering in June 2026. Most of its backbone files were
conversions of weights that others had released; those releases are still there. ``relation`` says how an entry's source
relates to OpenMMLab's file:

* ``SAME``: the release that the file was converted from: the same numbers under other names. It is used instead.
* ``RETRAINED``: another training of the same network. It is never used silently: loading fails and names it.
* ``NONE``: nothing near enough; loading fails and names the nearest there is.

Provenance is taken from OpenMMLab's documentation and from the releases' own. ``verified`` says whether the tensors
were compared one by one with OpenMMLab's file; that needs the file, which is no longer served.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from .preprocessing import DETECTRON_BGR, IMAGENET_RGB, MSRA_BGR, PYCLS_BGR, RESNEST_RGB, Preprocessing

__all__ = ["NAMED", "NamedWeights", "by_file", "by_name", "by_source", "by_url", "is_named"]

Relation = Literal["SAME", "RETRAINED", "NONE"]

_SERVER = "https://download.openmmlab.com"
_D1 = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained"
_D2 = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained"
_PYCLS = "https://dl.fbaipublicfiles.com/pycls/dds_baselines"


class NamedWeights(NamedTuple):
    """A name that configs use, and what it leads to.

    Attributes:
        name: What follows ``open-mmlab://``; for a file that configs give by its URL, the URL's last part.
        original: OpenMMLab's own URL.
        relation: How ``source`` relates to OpenMMLab's file: see the module's description.
        source: Where to get ``SAME`` weights, or the nearest there is.
        origin: Who trained the weights.
        preprocessing: The images that OpenMMLab's file wants, and a ``SAME`` source with it.
        style: Where its Bottlenecks stride: ``'pytorch'`` or ``'caffe'``.
        verified: Whether every tensor was compared with OpenMMLab's file.
    """

    name: str
    original: str
    relation: Relation
    source: str
    origin: str
    preprocessing: Preprocessing
    style: str = "pytorch"
    verified: bool = False


def _third_party(
    name: str,
    file: str,
    relation: Relation,
    source: str,
    origin: str,
    preprocessing: Preprocessing = IMAGENET_RGB,
    style: str = "pytorch",
) -> NamedWeights:
    original = f"{_SERVER}/pretrain/third_party/{file}"
    return NamedWeights(name, original, relation, source, origin, preprocessing, style)


def _regnet(size: str, file: str, release: str) -> NamedWeights:
    source = f"{_PYCLS}/{release}/RegNetX-{size.upper()}_dds_8gpu.pyth"
    return _third_party(f"regnetx_{size}", file, "SAME", source, "pycls (FAIR)", PYCLS_BGR)


_JHU = "Weight Standardization's authors (Johns Hopkins University)"
_ENCODING = "PyTorch-Encoding"
_UNRECORDED = "OpenMMLab, which did not record the training"
_DETECTRON = "Detectron (FAIR), Caffe2"

NAMED: tuple[NamedWeights, ...] = (
    _third_party(
        "detectron2/resnet50_caffe",
        "resnet50_msra-5891d200.pth",
        "SAME",
        f"{_D2}/MSRA/R-50.pkl",
        "MSRA's original ResNet-50, by way of detectron2",
        MSRA_BGR,
        "caffe",
    ),
    _third_party(
        "detectron2/resnet101_caffe",
        "resnet101_msra-6cc46731.pth",
        "SAME",
        f"{_D2}/MSRA/R-101.pkl",
        "MSRA's original ResNet-101, by way of detectron2",
        MSRA_BGR,
        "caffe",
    ),
    _third_party(
        "detectron2/resnext101_32x8d",
        "resnext101_32x8d-1516f1aa.pth",
        "SAME",
        f"{_D2}/FAIR/X-101-32x8d.pkl",
        "FAIR's ResNeXt-101 32x8d, by way of detectron2",
        PYCLS_BGR,
    ),
    _third_party(
        "detectron/resnet50_caffe",
        "resnet50_caffe-788b5fa3.pth",
        "SAME",
        f"{_D1}/MSRA/R-50.pkl",
        f"MSRA's original ResNet-50, by way of {_DETECTRON}",
        DETECTRON_BGR,
        "caffe",
    ),
    _third_party(
        "detectron/resnet101_caffe",
        "resnet101_caffe-3ad79236.pth",
        "SAME",
        f"{_D1}/MSRA/R-101.pkl",
        f"MSRA's original ResNet-101, by way of {_DETECTRON}",
        DETECTRON_BGR,
        "caffe",
    ),
    _third_party(
        "detectron/resnet50_gn", "resnet50_gn-9186a21c.pth", "SAME", f"{_D1}/47261647/R-50-GN.pkl", _DETECTRON, MSRA_BGR
    ),
    _third_party(
        "detectron/resnet101_gn",
        "resnet101_gn-cac0ab98.pth",
        "SAME",
        f"{_D1}/47592356/R-101-GN.pkl",
        _DETECTRON,
        MSRA_BGR,
    ),
    _third_party(
        "contrib/resnet50_gn",
        "resnet50_gn_thangvubk-ad1730dd.pth",
        "RETRAINED",
        "timm://resnet50_gn.a1h_in1k",
        "a contributor's own training (thangvubk)",
    ),
    *(
        _third_party(f"jhu/{name}", f"{name}-{digest}.pth", "NONE", source, _JHU)
        for name, digest, source in (
            ("resnet50_gn_ws", "15beedd8", "timm://resnet50_gn.a1h_in1k"),
            ("resnet101_gn_ws", "3e3c308c", "open-mmlab://detectron/resnet101_gn"),
            ("resnext50_32x4d_gn_ws", "0d87ac85", "torchvision://resnext50_32x4d"),
            ("resnext101_32x4d_gn_ws", "34ac1a9e", "timm://resnext101_32x4d.gluon_in1k"),
            ("resnext50_32x4d_gn", "c7e8b754", "torchvision://resnext50_32x4d"),
            ("resnext101_32x4d_gn", "ac3bb84e", "timm://resnext101_32x4d.gluon_in1k"),
        )
    ),
    _third_party(
        "resnext50_32x4d", "resnext50-32x4d-0ab1a123.pth", "RETRAINED", "torchvision://resnext50_32x4d", _UNRECORDED
    ),
    _third_party(
        "resnext101_32x4d",
        "resnext101_32x4d-a5af3160.pth",
        "RETRAINED",
        "timm://resnext101_32x4d.gluon_in1k",
        _UNRECORDED,
    ),
    _third_party(
        "resnext101_64x4d", "resnext101_64x4d-ee2c6f71.pth", "RETRAINED", "torchvision://resnext101_64x4d", _UNRECORDED
    ),
    _regnet("400mf", "regnetx_400mf-a5b10d96.pth", "160905967"),
    _regnet("800mf", "regnetx_800mf-1f4be4c7.pth", "160906036"),
    _regnet("1.6gf", "regnetx_1.6gf-5791c176.pth", "160990626"),
    _regnet("3.2gf", "regnetx_3.2gf-c2599b0f.pth", "160906139"),
    _regnet("4.0gf", "regnetx_4.0gf-a88f671e.pth", "160906383"),
    _regnet("6.4gf", "regnetx_6.4gf-006af45d.pth", "161116590"),
    _regnet("8.0gf", "regnetx_8.0gf-3c68abe7.pth", "161107726"),
    _regnet("12gf", "regnetx_12gf-4c2a3350.pth", "160906020"),
    *(
        _third_party(
            f"resnest{depth}",
            f"resnest{depth}_d2-{digest}.pth",
            "SAME",
            f"https://s3.us-west-1.wasabisys.com/resnest/detectron/resnest{depth}_detectron-{release}.pth",
            "ResNeSt's authors, for detectron2",
            RESNEST_RGB,
        )
        for depth, digest, release in (
            (50, "7497a55b", "255b5649"),
            (101, "f3b931b2", "486f69a8"),
            (200, "ca88e41f", "02644020"),
        )
    ),
    _third_party(
        "res2net101_v1d_26w_4s",
        "res2net101_v1d_26w_4s_mmdetv2-f0a600f9.pth",
        "SAME",
        "https://shanghuagao.oss-cn-beijing.aliyuncs.com/res2net/res2net101_v1b_26w_4s-0812c246.pth",
        "Res2Net's authors, who call this network v1b",
    ),
    _third_party("resnet18_v1c", "resnet18_v1c-b5776b93.pth", "NONE", "timm://resnet18d.ra2_in1k", _ENCODING),
    _third_party("resnet50_v1c", "resnet50_v1c-2cccc1ad.pth", "RETRAINED", "timm://resnet50c.gluon_in1k", _ENCODING),
    _third_party("resnet101_v1c", "resnet101_v1c-e67eebb6.pth", "RETRAINED", "timm://resnet101c.gluon_in1k", _ENCODING),
    *(
        NamedWeights(
            file,
            f"{_SERVER}/mmclassification/v0/resnet/{file}",
            "RETRAINED",
            source,
            "OpenMMLab (mmpretrain)",
            IMAGENET_RGB,
        )
        for file, source in (
            ("resnet50_8xb256-rsb-a1-600e_in1k_20211228-20e21305.pth", "timm://resnet50.a1_in1k"),
            ("resnet50_batch256_imagenet_20200708-cfb998bf.pth", "torchvision://resnet50"),
        )
    ),
)

# Releases whose names are not enough to tell what they want.
_RELEASES: dict[str, tuple[Preprocessing, str]] = {
    f"{_D2}/torchvision/R-50.pkl": (IMAGENET_RGB, "pytorch"),
    f"{_D2}/torchvision/R-101.pkl": (IMAGENET_RGB, "pytorch"),
    # Detectron2's catalog says of Detectron's weights that all take images with a standard deviation of 1.
    f"{_D1}/20171220/X-101-32x8d.pkl": (DETECTRON_BGR, "pytorch"),
    f"{_D1}/FBResNeXt/X-101-64x4d.pkl": (DETECTRON_BGR, "pytorch"),
    f"{_D1}/25093814/X-152-32x8d-IN5k.pkl": (DETECTRON_BGR, "pytorch"),
}


def by_name(name: str) -> NamedWeights | None:
    """Find the entry of a name.

    Args:
        name: What follows ``open-mmlab://``.
    """
    return next((entry for entry in NAMED if entry.name == name), None)


def by_url(url: str) -> NamedWeights | None:
    """Find the entry of one of OpenMMLab's URLs."""
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
    """Say which images and which style the file of a release wants.

    Args:
        url: The release's URL.
    """
    same = (entry for entry in NAMED if entry.relation == "SAME" and entry.source == url)
    entry = next(same, None)
    return (entry.preprocessing, entry.style) if entry is not None else _RELEASES.get(url)
