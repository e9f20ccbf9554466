"""The model: a stock vision language model with the safety modules attached."""
