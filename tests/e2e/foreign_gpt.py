"""A user's script that does what channel loss cannot be right with; ``HOW`` names it."""

import os

from domain_pretrain.hosts.gpt import entry as gpt

HOW = os.environ["HOW"]
datasets, loss_func = gpt.datasets, gpt.loss_func


class Wrapped:
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)


class WithoutIds(Wrapped):
    def __getitem__(self, index):
        return {k: v for k, v in self.dataset[index].items() if k != "dataset_id"}


class StrangeIds(Wrapped):
    """Step 2 of batches of 8 has ids that the blend does not have."""

    def __getitem__(self, index):
        return {**self.dataset[index], **({"dataset_id": 99} if 8 <= index < 16 else {})}


def own_dataset(num_samples, vp_stage=None):
    kind = {"own_dataset": WithoutIds, "strange_ids": StrangeIds}[HOW]
    return tuple(map(kind, datasets(num_samples, vp_stage)))


own_dataset.is_distributed = True


def doubled_loss(loss_mask, losses, model=None):
    loss, tokens, report = loss_func(loss_mask, losses, model=model)
    return 2 * loss, tokens, report


if HOW == "doubled_loss":
    gpt.loss_func = doubled_loss
else:
    gpt.datasets = own_dataset

if __name__ == "__main__":  # saving a checkpoint may import the script in another process
    gpt.main()
