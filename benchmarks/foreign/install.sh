#!/bin/sh
# An environment of its own for one foreign package: install.sh NAME FOLDER
set -eu
case "$1" in
    saelens) package="sae-lens==6.54.12" ;;
    sparsify) package="eai-sparsify==1.3.3" ;;
    dictionary_learning) package="dictionary-learning==0.1.0" ;;
    gguf) package="gguf==0.19.0 safetensors torch" ;;
    lm_eval) package="lm-eval[hf]==0.4.13" ;;
    *) echo "unknown: $1, expected saelens, sparsify, dictionary_learning, gguf or lm_eval" >&2; exit 2 ;;
esac
python -m venv "$2/$1"
"$2/$1/bin/pip" install --quiet torch --index-url https://download.pytorch.org/whl/cpu
# shellcheck disable=SC2086
"$2/$1/bin/pip" install --quiet $package
