"""The models and their patches in NumPy float64. ../numpy_reference.py says what for, and has the commands.

    files.py      safetensors, checkpoints, token ids
    families.py   what the blocks of each family are made of, and what its modules are called: data
    config.py     config.json in its old and new spellings
    rope.py       rotary position embeddings and their scalings
    model.py      the forward pass, written once for all families
    patch.py      Algorithm 1 with Theorem 1 or Theorem 5 in every layer
"""
