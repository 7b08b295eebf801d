#!/usr/bin/env bash
# TestU01's batteries over the words of csrc/philox.h; prints their summaries and fails if one of them is failed.
#
#   tests/noise/testu01.sh smallcrush     a minute: all streams, and a generator that must fail
#   tests/noise/testu01.sh crush          half an hour: the words of one key in order
#
# Needs TestU01 where the compiler looks: libtestu01-0-dev, which Debian has in non-free because commercial use asks
# for a written licence. No part of it is in this package. Results: benchmarks/results/testu01.txt.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${CXX:-g++}" -std=c++17 -O3 -Wall -Wextra -Werror -I csrc tests/noise/testu01.cpp -o "$work/testu01" \
  -ltestu01 -ltestu01probdist -ltestu01mylib

status=0
case ${1:-} in
  smallcrush)
    for stream in words words-reversed keys keys-reversed; do
      "$work/testu01" smallcrush "$stream" || status=1
    done
    if "$work/testu01" smallcrush lcg; then
      echo "SmallCrush passed a generator that it should fail"
      status=1
    fi
    ;;
  crush) "$work/testu01" crush words || status=1 ;;
  *)
    sed -n '2,5s/^# \?//p' "$0"
    status=2
    ;;
esac
exit $status
