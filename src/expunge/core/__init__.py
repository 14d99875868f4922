"""The central classes: data, problem, case, objective, and the contracts of methods, attacks and audits."""
