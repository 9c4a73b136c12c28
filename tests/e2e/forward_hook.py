"""What user's scripts that record a training's forward passes have in common."""

import functools

import torch


def recording(get_schedule, see):
    """``get_schedule``, whose schedules show every training forward step to ``see``.

    Args:
        see: called with the output, the loss function, and the positional and keyword arguments
            that the model was called with.
    """

    @functools.wraps(get_schedule)
    def get_recording_schedule(*args, **kwargs):
        schedule = get_schedule(*args, **kwargs)

        def recorded(*args, **kwargs):
            forward_step = kwargs["forward_step_func"]

            def recorded_forward_step(data_iterator, model, *rest, **more):
                calls = []
                hook = model.register_forward_pre_hook(
                    lambda _, *call: calls.append(call), with_kwargs=True
                )
                output, loss_func = forward_step(data_iterator, model, *rest, **more)
                hook.remove()
                if torch.is_grad_enabled():
                    see(output, loss_func, *calls[0])
                return output, loss_func

            return schedule(*args, **{**kwargs, "forward_step_func": recorded_forward_step})

        return recorded

    return get_recording_schedule
