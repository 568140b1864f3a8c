"""The laboratory: where what the objectives promise is put to the test."""
