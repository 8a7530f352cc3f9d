"""mini_undivided: BERT with and without its feed-forward layers, in a few files meant to be read.

The chapters, in the order to read them: tokenizer, corpus, data, model, optim, pretrain, glue (with
metrics), attention, cka, probe; then pairs, costs, and run with tokens and probe_tasks. `support`
holds what is needed to run but not to understand, `report` what people see, `course` the
assignments, which nothing else imports. Imports point one way: command lines → report → run →
chapters → support.

The experiment is that of arXiv:2012.11881, *Undivided Attention: Are Intermediate Layers Necessary
for BERT?*
"""

__version__ = "0.4.0"
