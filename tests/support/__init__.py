"""What the tests share: small models, modules, fault injection, browsers, synthetic evaluations."""
