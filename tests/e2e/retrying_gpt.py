"""A user's script: every schedule runs twice, as Megatron's paged stash does after an overflow.

It reads the step's batches ahead and gives both attempts the very same.
"""

from megatron.training import training

from domain_pretrain.hosts.gpt import entry as gpt

get_schedule = training.get_forward_backward_func


def get_retrying_schedule(*args, **kwargs):
    schedule = get_schedule(*args, **kwargs)

    def retrying_schedule(*, data_iterator, num_microbatches, model, **how):
        batches = [next(data_iterator) for _ in range(num_microbatches)]
        for _ in range(2):
            for chunk in model:
                if not how["forward_only"]:
                    chunk.zero_grad_buffer()
            result = schedule(
                data_iterator=iter(batches), num_microbatches=num_microbatches, model=model, **how
            )
        return result

    return retrying_schedule


training.get_forward_backward_func = get_retrying_schedule

if __name__ == "__main__":  # saving a checkpoint may import the script in another process
    gpt.main()
