"""The replicated types, one file each; `registry` says which function applies which kind of delta."""
