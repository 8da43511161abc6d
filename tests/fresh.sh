#!/usr/bin/env bash
# The README on a fresh machine: an empty clone, a bare environment, nothing but Python, make, git and the package
# registries. No JDK, no compiler, no database; an empty home; as root and as another user.
#
#   tests/fresh.sh [PYTHON ...]         default: /usr/bin/python3.11 (3.12 and 3.13 where they can be had)
#
# `make demo` on five seeds the first time and on one every other time, then `make test`: with the first Python as both
# users, with the others as root, in whose home they may lie. Prints a line per step with its seconds, and `fresh: ok` at
# the end; the first failure ends it with 1 and the log's tail. FRESH_SEEDS="1 2" and FRESH_USERS="root" do less.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d -t semel-fresh-XXXXXX)
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT
seeds=${FRESH_SEEDS:-1 2 3 4 5}
pythons=("$@")
if ((${#pythons[@]} == 0)); then
  pythons=(/usr/bin/python3.11)
  for version in 3.12 3.13; do
    found=$(compgen -G "$HOME/.pyenv/versions/$version.*/bin/python$version" | tail -n 1 || true)
    [[ -n $found ]] || found=$(command -v "python$version" || true)
    [[ -n $found ]] && pythons+=("$found")
  done
fi

# What a bare machine has on its PATH: the system's tools without JDKs, compilers and database servers.
bare=$work/bin
mkdir "$bare"
for tool in /usr/bin/* /bin/* /usr/sbin/* /sbin/*; do
  case $(basename "$tool") in
    java* | mvn* | gcc* | g++* | cc | c++ | c89* | c99* | cpp* | clang* | ld | ld.* | as | rustc | cargo | go | node | npm | psql | postgres* | pg_* | docker* | python* | pip*) ;;
    *) [[ -e $bare/$(basename "$tool") ]] || ln -s "$tool" "$bare/" ;;
  esac
done

step() { # step NAME USER LOG COMMAND...
  local name=$1 user=$2 log=$3 began status=0
  shift 3
  began=$(date +%s)
  if [[ $user == root ]]; then
    env -i PATH="$path" HOME="$home" LANG=C.UTF-8 TERM=dumb "$@" >"$log" 2>&1 </dev/null || status=$?
  else
    setpriv --reuid=65534 --regid=65534 --clear-groups \
      env -i PATH="$path" HOME="$home" LANG=C.UTF-8 TERM=dumb "$@" >"$log" 2>&1 </dev/null || status=$?
  fi
  printf '%-52s %4d s  exit %d\n' "$name" $(($(date +%s) - began)) "$status"
  if ((status)); then
    tail -n 60 "$log" >&2
    echo "fresh: $name failed" >&2
    exit 1
  fi
}

users=(other)
[[ $(id -u) == 0 ]] && read -ra users <<<"${FRESH_USERS:-root other}"
[[ $(id -u) == 0 ]] || { users=(root); echo "not root: only this user ($(id -un)) is tried"; }
first=1
for python in "${pythons[@]}"; do
  for user in "${users[@]}"; do
    name="$("$python" --version 2>&1 | cut -d' ' -f2) $user"
    place=$work/$(tr ' ' '-' <<<"$name")
    home=$place/home
    mkdir -p "$home" "$place/bin"
    ln -s "$python" "$place/bin/python3"
    path=$place/bin:$bare
    git clone -q "$here" "$place/semel"
    [[ $user == other ]] && chown -R 65534:65534 "$place"
    cd "$place/semel"
    for seed in $([[ $first == 1 ]] && echo "$seeds" || echo 1); do
      step "$name: make demo, seed $seed" "$user" "$place/demo-$seed.log" make demo DEMO_SEED="$seed"
      tail -n 40 "$place/demo-$seed.log" | grep -E 'exactly-once' | head -n 8 || true
    done
    # A Python that this user cannot run is passed over for another: that would prove nothing.
    made=$(.venv/bin/python --version 2>&1 | cut -d' ' -f2)
    [[ $made == "${name%% *}" ]] || { echo "fresh: $name: .venv is Python $made" >&2; exit 1; }
    step "$name: make test" "$user" "$place/test.log" make test
    tail -n 1 "$place/test.log"
    cd "$work"
    first=0
  done
  users=("${users[0]}")
done
echo "fresh: ok"
