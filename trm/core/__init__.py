"""Pure functions of tensors: the network, the recursion, the losses, the update, and the step that is made of them."""
