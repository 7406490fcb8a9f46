"""A model that answers over the network: dynamic batching around sessions in processes of their own."""
