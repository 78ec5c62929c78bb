# What people type. The work is done by deploy/dev/*.sh, which say in their first lines what they do.

.PHONY: help test load bench demo demo-stop screenshot

help:
	@echo 'make test [T="arguments of cargo test"]   all tests, against a PostgreSQL and a MongoDB of their own'
	@echo 'make load [SCALE=large] [USERS=50]         the load tests in short, with charts; figures go to loadtests/RESULTS.md'
	@echo 'make bench [SCALE=medium] [ROUNDS=5]        how it compares, side by side; figures go to loadtests/RESULTS.md'
	@echo 'make demo [STORE=mongo] [SCALE=large]      a running service over a demonstration workspace'
	@echo 'make screenshot                            the dashboard as a browser shows it, into .dev/screenshots/'
	@echo 'make demo-stop                             stops what the demonstration started; its data stays in .dev/'

test:
	@deploy/dev/test.sh $(T)

load:
	@deploy/dev/load.sh

bench:
	@benches/run.sh

demo:
	@STORE='$(STORE)' SCALE='$(SCALE)' deploy/dev/demo.sh

demo-stop:
	@deploy/dev/demo.sh stop

screenshot:
	@deploy/dev/screenshot.sh
