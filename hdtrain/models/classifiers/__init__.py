"""The kinds of classifier, one module each; `hdtrain.models.classifier` builds and loads them."""
