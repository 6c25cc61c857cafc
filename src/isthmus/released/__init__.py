"""Released vision-language models, a file for each family: what its parts are.

A file registers a class under Transformers' model type. The class fits
`isthmus.model.backbones.released.Family`. Nothing else needs to know of it: `load`, `load_vision`
and `load_language` find it by the model type in `config.json`.
"""
