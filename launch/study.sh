#!/usr/bin/env bash
# The study of docs/STUDY.md: every condition of configs/study.py, one seed after another, then the table and the
# picture. Run again, it goes on where it stopped.
#
#   bash launch/study.sh DATA                    # seed 0
#   SEEDS="0 1 2" CONDITIONS="embeddings each-layer peer" bash launch/study.sh DATA
[ $# -eq 1 ] || { echo "usage: bash launch/study.sh DATA" >&2; exit 2; }
data=$(cd "$1" && pwd) || exit 2
source "$(dirname "$0")/environment.sh" test
mkdir -p runs/study
install -m 644 "$data/parallel_ko_en/news-dev.en" runs/study/news-en.txt
all=$(python -c "from configs import study; print(*study.CONDITIONS, study.PEER)")
runs=()
for seed in ${SEEDS:-0}; do
  first=""
  for condition in ${CONDITIONS:-$all}; do
    run=runs/study/$condition-$seed
    if [ "$condition" = peer ]; then
      python -m medkor_jax.bench.study_peer "$data" "$seed" "runs/study/peer-model-$seed"
    elif [ -n "$first" ] && [ ! -d "$run" ]; then
      # All start from the same model: what was measured of it once is taken by its digest.
      mkdir -p "$run/phase3/answers"
      cp "$first"/phase3/measured-before.json "$run/phase3/"
      cp "$first"/phase3/answers/*-before.jsonl "$run/phase3/answers/"
    fi
    medkor run --config "configs/study.py:$data,$condition,$seed" || [ $? -eq 3 ]  # a closed gate is a result here
    [ "$condition" = peer ] || first=${first:-$run}
    runs+=("$run")
  done
done
python -m medkor_jax.bench.study_kl "$data" "${runs[@]}"
python -m medkor_jax.report.study "${runs[@]}" --out runs/study
