"""The study of recurrent autoencoders with complex weights, which discover objects (2405.17283)."""
