#!/usr/bin/env bash
# Every configuration of the WinoBias study: models x filtered or not x splits. Finished JSONs are kept.
#
#   ./attention_intervention_winobias.sh                                  the five GPT-2 sizes, results here
#   MODELS="smollm2-135m" OUT_DIR=results ./attention_intervention_winobias.sh --device cuda
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out_dir=${OUT_DIR:-.}

for model in ${MODELS:-distilgpt2 gpt2 gpt2-medium gpt2-large gpt2-xl}; do
  for filter in True False; do
    for split in dev test; do
      kind=$([ "$filter" = True ] && echo filtered || echo unfiltered)
      file="$out_dir/winobias_data/attention_intervention_${model##*/}_${kind}_${split}.json"
      if [ -f "$file" ]; then
        echo "kept: $file"
      else
        "${PYTHON:-python}" "$here/attention_intervention_winobias.py" -model "$model" \
          --do-filter "$filter" --split "$split" -out_dir "$out_dir" "$@"
      fi
    done
  done
done
