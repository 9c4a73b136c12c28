"""A user's script that does what channel loss cannot be right with; ``HOW`` names it."""

import os

from domain_pretrain.hosts.gpt import entry as gpt

datasets, loss_func = gpt.datasets, gpt.loss_func


class WithoutIds:
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return {k: v for k, v in self.dataset[index].items() if k != "dataset_id"}


def own_dataset(num_samples, vp_stage=None):
    return tuple(WithoutIds(dataset) for dataset in datasets(num_samples, vp_stage))


own_dataset.is_distributed = True


def doubled_loss(loss_mask, losses, model=None):
    loss, tokens, report = loss_func(loss_mask, losses, model=model)
    return 2 * loss, tokens, report


if os.environ["HOW"] == "own_dataset":
    gpt.datasets = own_dataset
else:
    gpt.loss_func = doubled_loss

if __name__ == "__main__":  # saving a checkpoint may import the script in another process
    gpt.main()
