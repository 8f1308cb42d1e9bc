"""The studio: web pages on which people compare answers, and others see how far those labels can be trusted."""
