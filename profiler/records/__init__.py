"""What real servers leave behind, in one form each: steps, samples, a recorder's lines, clients' results."""
