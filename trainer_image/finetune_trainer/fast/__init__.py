"""The same mathematics in less time: kernels that replace parts of a model of transformers.

`apply.speed_up` puts them in. A kernel is used only where it has proven, on the loaded model, that
it computes what the part computed which it replaces; there is no list of models.
"""
