#!/usr/bin/env bash
# The study of docs/STUDY.md: every condition of configs/study.py, one seed after another. Run again, it goes on where
# it stopped.
#
#   bash launch/study.sh DATA                    # seed 0
#   SEEDS="0 1 2" CONDITIONS="embeddings rehearsal-10" bash launch/study.sh DATA
[ $# -eq 1 ] || { echo "usage: bash launch/study.sh DATA" >&2; exit 2; }
data=$(cd "$1" && pwd) || exit 2
source "$(dirname "$0")/environment.sh" test
mkdir -p runs/study
cp "$data/parallel_ko_en/news-dev.en" runs/study/news-en.txt
all=$(python -c "from configs import study; print(*study.CONDITIONS, study.PEER)")
for seed in ${SEEDS:-0}; do
  for condition in ${CONDITIONS:-$all}; do
    if [ "$condition" = peer ]; then
      python -m medkor_jax.bench.study_peer "$data" "$seed" "runs/study/peer-model-$seed"
    fi
    medkor run --config "configs/study.py:$data,$condition,$seed"
  done
done
medkor compare $(for seed in ${SEEDS:-0}; do for c in ${CONDITIONS:-$all}; do echo "runs/study/$c-$seed"; done; done) --out runs/study
