"""The credit laboratory: credit methods compared by a written study."""
