# Functions that make the environments of .ci/run. Sourced, not run.
#
# An environment that takes long to make is kept in a cache folder, under a name that holds its versions, and is used again
# once the file .complete in it says that it was finished. The package under test never goes into one: each run puts it into
# an overlay of its own.

CACHE=${RESNET_BACKBONE_CI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/resnet-backbone-ci}

# find_python 3.10: print the path of such an interpreter.
find_python() {
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1"*/bin/python; do
        if candidate=$(command -v "$candidate") && "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null
        then
            echo "$candidate"
            return
        fi
    done
    # None on this machine: let uv fetch one.
    python3 -m venv "$CACHE/uv" && "$CACHE/uv/bin/pip" install --quiet uv && "$CACHE/uv/bin/uv" python install --quiet "$1" >&2
    "$CACHE/uv/bin/uv" python find "$1"
}

# cached_environment NAME PYTHON INSTALL_FUNCTION: make it unless it is there; its path is in $environment.
cached_environment() {
    environment=$CACHE/$1
    [ -e "$environment/.complete" ] && return
    rm -rf "$environment"
    mkdir -p "$CACHE"
    "$2" -m venv "$environment"
    "$3" "$environment/bin/pip"
    touch "$environment/.complete"
}

# overlay BASE DIRECTORY PACKAGE...: a new environment over BASE, which pip sees as installed and does not touch.
overlay() {
    local base=$1 directory=$2 pinned
    shift 2
    "$base/bin/python" -m venv "$directory"
    pinned=$("$base/bin/python" -c "import site; print(site.getsitepackages()[0])")
    echo "$pinned" > "$("$directory/bin/python" -c "import site; print(site.getsitepackages()[0])")/base.pth"
    # What the base holds stays at its version: a compiled mmcv works with one torch alone.
    "$base/bin/pip" freeze --exclude-editable | grep -E '^(torch|torchvision|numpy|mmcv|mmcv-lite|mmengine|onedl-[a-z]+)==' > "$directory/constraints.txt"
    "$directory/bin/pip" install --quiet --constraint "$directory/constraints.txt" "$@"
}

# mmcv, compiled by the command that users are given.
install_mmdet() {
    "$1" install --quiet torch==2.15.0 torchvision==0.29.2 'setuptools<82' wheel ninja psutil mmengine==0.10.7 mmdet==3.3.0
    "${1%pip}python" resnet_backbone_build_mmcv.py --cpu
}

# without_debug_symbols COMMAND...: run it with a C++ compiler that writes none, whatever it is told: Python's CFLAGS ask for
# them, and they take almost half of the time of compiling mmcv.
without_debug_symbols() {
    printf '#!/bin/sh\nexec c++ "$@" -g0\n' > "$CACHE/c++"
    chmod +x "$CACHE/c++"
    CXX=$CACHE/c++ "$@"
}

# mmcv, compiled as its own documentation says. pip's wheel cache does not know which torch a wheel was compiled for, hence
# --no-cache-dir; mmcv's setup.py needs torch (--no-build-isolation) and pkg_resources (setuptools < 81).
install_mmdet_2.12() {
    "$1" install --quiet torch==2.12.1 torchvision==0.27.1 'setuptools<81' wheel ninja psutil
    without_debug_symbols "$1" install --quiet --no-cache-dir --no-build-isolation mmcv==2.1.0 mmengine==0.10.7
    "$1" install --quiet mmdet==3.3.0
}

install_onedl() {
    "$1" install --quiet torch==2.12.1 torchvision==0.27.1 'setuptools>=77.0.3,<81' wheel ninja psutil
    without_debug_symbols "$1" install --quiet --no-cache-dir --no-build-isolation onedl-mmcv==2.3.6 onedl-mmengine==0.10.12
    "$1" install --quiet --no-build-isolation onedl-mmdetection==3.5.1
}

install_oldest() {
    "$1" install --quiet torch==2.1.0 torchvision==0.16.0 'numpy<2' 'setuptools<81' mmcv-lite==2.1.0 mmengine==0.10.7
}

# What mypy reads: the libraries with their types, without the package itself.
install_lint() {
    "$1" install --quiet "$(sed -n 's/^dev = .*"\(ruff==[^"]*\)".*/\1/p' pyproject.toml)" \
        "$(sed -n 's/^dev = .*"\(mypy==[^"]*\)".*/\1/p' pyproject.toml)" \
        torch torchvision mmengine 'mmcv-lite>=2.1' 'setuptools<82' matplotlib rich pillow \
        timm safetensors huggingface_hub onnx onnxruntime onnxscript torchao pyts
}
