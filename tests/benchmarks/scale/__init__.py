"""How build-domains grows: its stages at N, 4 N and 16 N passages, and a model of them."""
