"""The contracts in torch: data, problem, case, objective, methods, attacks and audits."""
