"""Chat templates for base models that come without one, by the name a recipe uses."""

_TURNS = "{% for message in messages %}"
_END = "{% endfor %}"

TEMPLATES = {
    "gemma": (
        "{{ bos_token }}" + _TURNS + "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else "
        "message['role']) + '\n' + message['content'] | trim + '<end_of_turn>\n' }}" + _END + "{% if add_generation_prompt %}"
        "{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "chatml": (
        _TURNS
        + "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
        + _END
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "zephyr": (
        _TURNS
        + "{{ '<|' + message['role'] + '|>\n' + message['content'] | trim + eos_token + '\n' }}"
        + _END
        + "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "alpaca": (
        "{{ bos_token }}" + _TURNS + "{% if message['role'] == 'assistant' %}"
        "{{ '### Response:\n' + message['content'] | trim + eos_token + '\n\n' }}{% else %}"
        "{{ '### Instruction:\n' + message['content'] | trim + '\n\n' }}{% endif %}"
        + _END
        + "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
}
