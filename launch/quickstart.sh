#!/usr/bin/env bash
# From nothing but Python 3.11+ to words in, pictures out: installs mmjax and trains the small chain of unCLIP on scenes of one or two
# objects, stage after stage: CLIP, its embeddings cached, the prior, a decoder of 16 pixels, an upsampler to 32. Then it draws, scores, and
# prints where the report is.
#
#   bash launch/quickstart.sh [FOLDER] [ROLE.key=value ...]     FOLDER defaults to runs/unclip; ROLE is clip, prior, decoder or upsampler,
#                                                                  or all: all.seed=1
#
# Given again it continues what was interrupted; what is finished is only evaluated. PYTHON=... chooses the interpreter for a new environment.
# SET=smoke trains for seconds, to see that everything runs; SET=objects is the chain of 64 pixels.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

case ${1:-} in
  -h | --help)
    usage
    exit
    ;;
  -* | *=*) die "the first argument is the folder, got '$1'; usage: bash launch/quickstart.sh [FOLDER] [ROLE.key=value ...]" ;;
esac
folder=${1:-runs/unclip}
# A relative FOLDER is meant from where the command was given.
if [ $# -gt 0 ]; then
  [ "$PWD" = "$root" ] || [ "${folder:0:1}" = / ] || folder=$PWD/$folder
  shift
fi
words=("$@")
for word in "${words[@]}"; do
  [[ $word =~ ^(all|clip|prior|decoder|upsampler)\..+= ]] || die "'$word': expected ROLE.key=value, ROLE one of all, clip, prior, decoder, upsampler"
done
set_name=${SET:-clear}
case $set_name in clear | objects | smoke) ;; *) die "SET=$set_name: expected clear, objects or smoke" ;; esac
cd "$root"

make_env .venv tensorboard
mmjax=$root/.venv/bin/mmjax

# Prints the words of a role, one a line, without its name.
words_of() {
  local word
  for word in "${words[@]}"; do
    case $word in "$1".* | all.*) printf '%s\n' "${word#*.}" ;; esac
  done
}

# stage ROLE WORKDIR CONFIG: trains, or continues.
stage() {
  local own
  mapfile -t own < <(words_of "$1")
  say "$2: training in $folder/$2"
  "$mmjax" train --config "$3" --workdir "$folder/$2" "${@:4}" "${own[@]}"
}

began=$SECONDS
stage clip clip "configs/unclip/clip.py:$set_name"
if [ ! -e "$folder/pairs/train/meta.json" ]; then
  say "embeddings of the training set in $folder/pairs"
  "$mmjax" cache --workdir "$folder/clip" --predict encode_image:embedding,encode_text:text_embedding --captions 3 \
    --keep image,tokens --split train --out "$folder/pairs"
fi
pairs=$folder/pairs
[ "${pairs:0:1}" = / ] || pairs=$root/$pairs # it is remembered, and may be read from elsewhere
pairs=data.path=$pairs
stage prior prior "configs/unclip/chain.py:prior:$set_name" "$pairs"
stage decoder decoder "configs/unclip/chain.py:decoder:$set_name" "$pairs"
stage upsampler up32 "configs/unclip/chain.py:upsampler:$set_name" "$pairs"
upsamplers='"up32"'
if [ "$set_name" = objects ]; then
  stage upsampler up64 "configs/unclip/chain.py:upsampler64:$set_name" "$pairs"
  upsamplers='"up32", "up64"'
fi
printf '{"clip": "clip", "prior": "prior", "decoder": "decoder", "upsamplers": [%s]}\n' "$upsamplers" >"$folder/pipeline.json"
say "drawing and scoring"
"$mmjax" eval --pipeline "$folder/pipeline.json" --candidates 8 --report
say "$(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s after installation; now try:"
echo "  $mmjax sample --pipeline $folder/pipeline.json --prompt \"a red circle and a blue star\" --num 8 --candidates 8 --out $folder/drawn"
