"""What a study is, and how it runs: claims as data, one measurement a seed, a decision by rules."""
