#!/bin/sh
# An environment of its own for one foreign package: install.sh NAME FOLDER
# PYTHON names the interpreter; TORCH_INDEX an index with other torch wheels, such as
# https://download.pytorch.org/whl/cpu where the default index would bring CUDA along.
set -eu
case "${1:-}" in
    saelens) package="sae-lens==6.54.12" ;;
    sparsify) package="eai-sparsify==1.3.3" ;;
    dictionary_learning) package="dictionary-learning==0.1.0" ;;
    gguf) package="gguf==0.19.0 safetensors" ;;
    lm_eval) package="lm-eval[hf]==0.4.13" ;;
    circuit_tracer) package="circuit-tracer==0.5.0" ;;
    # it asks for any transformer-lens and imports what release 4 removed
    llamascopium) package="llamascopium==2.0.0b34 transformer-lens<4" ;;
    # what writes and reads latents needs none of its language model servers and judges (vllm, bitsandbytes)
    delphi) alone="eai-delphi==0.1.3"
        package="eai-sparsify==1.3.3 asyncer blobfile faiss-cpu jaxtyping beartype orjson sentence-transformers simple-parsing" ;;
    *) echo "usage: install.sh NAME FOLDER, NAME one of saelens sparsify dictionary_learning gguf lm_eval" \
        "circuit_tracer llamascopium delphi" >&2; exit 2 ;;
esac
torch=$(grep '^torch==' "$(dirname "$0")/../../constraints.txt")
"${PYTHON:-python3}" -m venv "$2/$1"
"$2/$1/bin/pip" install --quiet --no-compile ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch"
# shellcheck disable=SC2086
"$2/$1/bin/pip" install --quiet --no-compile "$torch" $package
[ -z "${alone:-}" ] || "$2/$1/bin/pip" install --quiet --no-compile --no-deps "$alone"
# some of them bring a torchvision built for another torch, which transformers then fails to import
"$2/$1/bin/pip" uninstall --quiet --yes torchvision 2> /dev/null || true
"$2/$1/bin/pip" list --format=freeze | grep -iE "^(torch|${package%%[=[]*})==" | tr '\n' ' '
echo "in $2/$1"
