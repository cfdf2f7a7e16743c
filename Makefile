# make demo   sets up .venv and runs a part of both studies on SmolLM2-135M; results and report.html in demo/
# make test   sets up .venv-test and runs the tests
# make test-avx2  the same as on a processor that does not multiply bfloat16
# make soak   runs under SIGKILL at random moments, compared with undisturbed ones; all prompts of the real model
# make fuzz   2,000 damaged files for every reader
# make bench  times everything against the 2020 algorithm and other libraries, in turns; report in bench/

PYTHON ?= python3
DEMO ?= demo
PROFESSIONS ?= dancer librarian maid nurse secretary teacher clerk \
	captain doctor judge farmer mechanic officer soldier pastor
EXAMPLES ?= 40
SWEPT = -model smollm2-135m -out_dir $(DEMO)
RESULTS = "$$(ls -d $(DEMO)/results/*_neuron_intervention | tail -n 1)"
PIP = bin/python -m pip --disable-pip-version-check install

.PHONY: demo test test-avx2 bench fuzz soak

demo: .venv/ready
	.venv/bin/python -m mediation.assets smollm2-135m winobias
	@echo "1 of 4: total effects of 153 professions in 17 templates (half a minute)"
	.venv/bin/python run_profession_neuron_experiments.py $(SWEPT) --total_effects_only
	.venv/bin/python compute_neuron_total_effect.py $(RESULTS) smollm2-135m
	.venv/bin/python compute_neuron_split_total_effect.py $(RESULTS) smollm2-135m
	@echo "2 of 4: effects of 17,856 neurons for $(words $(PROFESSIONS)) professions, estimated to first order (about two minutes)"
	.venv/bin/python run_profession_neuron_experiments.py $(SWEPT) -template_indices 1 --professions $(PROFESSIONS) --method gradient
	.venv/bin/python compute_and_save_neuron_agg_effect.py $(RESULTS) smollm2-135m
	.venv/bin/python compute_neuron_effect_per_layer.py $(RESULTS)
	@echo "3 of 4: effects of 270 attention heads in $(EXAMPLES) examples of WinoBias, those that pass the filter (about four minutes)"
	.venv/bin/python attention_intervention_winobias.py $(SWEPT) --do-filter True --split dev --max_examples $(EXAMPLES)
	.venv/bin/python attention_figures3.py $(SWEPT) --do-filter True --split dev --examples 3
	@echo "4 of 4: the report"
	.venv/bin/python make_report.py $(RESULTS) $(DEMO)/winobias_data smollm2-135m -out_dir $(DEMO)

test: .venv-test/ready
	.venv-test/bin/ruff check .
	.venv-test/bin/mypy
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 .venv-test/bin/python -m pytest -n 2 --dist worksteal

test-avx2: export ONEDNN_MAX_CPU_ISA = AVX2
test-avx2: export ATEN_CPU_CAPABILITY = avx2
test-avx2: test

soak: .venv-test/ready
	MEDIATION_WHOLE=1 .venv-test/bin/python -m pytest -q tests/soak.py tests/oracles/test_real_model.py

fuzz: .venv-test/ready
	.venv-test/bin/python -m tests.fuzz

bench: .venv/ready
	.venv/bin/python -m mediation.assets smollm2-135m winobias
	.venv/bin/python -m benchmarks

.venv/ready: requirements.txt
	$(PYTHON) -m venv --clear .venv
	.venv/$(PIP) -r requirements.txt
	touch $@

.venv-test/ready: requirements.txt requirements-cluster.txt requirements-test.txt
	$(PYTHON) -m venv --clear .venv-test
	.venv-test/$(PIP) -r requirements-test.txt
	touch $@
