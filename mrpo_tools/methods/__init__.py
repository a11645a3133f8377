"""What `--loss NAME` means.

presets       losses that are an objective after a combination
method        a recipe -> an objective, its hyper-parameters, a combination of references
tensors       cached rows and groups -> tensors
combination   log-probs of K references -> the one that the objective sees
"""
