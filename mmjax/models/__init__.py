"""Networks, one file a family: a linen module whose fields are its hyper-parameters, and VARIANTS with the published sizes."""
