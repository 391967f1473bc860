"""Judge super-resolution by one protocol: fixed cases, fixed masks, the same yardsticks beside every
number."""
