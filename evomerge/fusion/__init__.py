"""Knowledge fusion: sources of any architecture and tokenizer are brought into one architecture, by training.

FuseLLM (arXiv 2401.10491) and FuseChat (2402.16107, 2408.07990): a pass over a corpus keeps what each source says of it
(`teachers`), tokenizations are aligned and vocabularies mapped (`alignment`), what the sources say is fused into one
sparse distribution for each position (`targets`), and the target learns from it beside the text (`training`).
"""
