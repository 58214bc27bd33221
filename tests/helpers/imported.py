"""What takes long to import, for processes that are forked from one which has it: see forked.py."""

import gc

import datasets  # noqa: F401
import torch
import trl.trainer.dpo_trainer  # noqa: F401

import lowmem_spin.cli.main
import lowmem_spin.cli.play
import lowmem_spin.engines.hf
import lowmem_spin.report.page  # noqa: F401

torch.set_num_threads(1)
gc.collect()
gc.freeze()  # what is imported stays: no fork looks through it, and so none copies its memory
