"""mini_undivided: BERT with and without its feed-forward layers, in a few files meant to be read.

Read the modules in this order: tokenizer, corpus, data, model, pretrain, glue, cka, probe. `runs` and `runtime` are
what they stand on. The experiment is that of arXiv:2012.11881, *Undivided Attention: Are Intermediate Layers
Necessary for BERT?*
"""

__version__ = "0.1.0"
