# make install   the environment .venv (quick when nothing changed)
# make run       trains, scores and tabulates `ours` on the embedded data set
# make test      the whole test-suite

PYTHON ?= python3
BIN = .venv/bin
STAMP = .venv/.installed

.PHONY: install run test clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than Python 3.11; name a newer one: make install PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(STAMP)

run: install
	$(BIN)/bench run --method ours --dataset polydigits --preset quick
	$(BIN)/bench table --dataset polydigits

test: install
	$(BIN)/python -m pytest -n auto --dist worksteal

clean:
	rm -rf .venv
