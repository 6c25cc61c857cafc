"""What a vision-language model looked at, token by token of its answer, and what it depended on."""
