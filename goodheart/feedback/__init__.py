"""Labels and what they mean: where they are kept, how far people agree, and what can be learnt from them."""
