"""UnlearnCanvas: names, data, answer sets and their scores, of the published size and in miniature."""
