"""Tests the claims of the papers on the embedded corpus: small trainings, several seeds, verdicts by a rule set before.

verdicts.py has the rule, recipes.py every training, catalogue.py the claims, bench.py and costs.py what is measured
without training. trainings.py runs what is missing, run.py everything, page.py shows it.
"""
