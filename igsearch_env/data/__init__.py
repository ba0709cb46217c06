"""Question sets and corpora: from files, the Hugging Face hub and the embedded world."""
