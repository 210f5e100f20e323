"""Configs that the package ships: deepspeed/*.json and train/*.yaml."""
