"""Chat templates for base models that come without one, by the name a recipe uses.

A system text without a turn of its own is put before what comes after it, and a role that a format does not know is refused;
ChatML's turns may have any role.
"""

_TURNS = "{% for message in messages %}"
_END = "{% endfor %}"
_REFUSE = "{{ raise_exception('it has no turn for ' + message['role'] + ' there') }}"

TEMPLATES = {
    "gemma": (
        "{{ bos_token }}{% set system = messages and messages[0]['role'] == 'system' %}"
        + _TURNS
        + "{% if message['role'] == 'assistant' and not (system and loop.index == 2) %}"
        "{{ '<start_of_turn>model\n' + message['content'] | trim + '<end_of_turn>\n' }}"
        "{% elif message['role'] == 'user' %}"
        "{{ '<start_of_turn>user\n' + (messages[0]['content'] | trim + '\n\n' if system and loop.index == 2 else '') "
        "+ message['content'] | trim + '<end_of_turn>\n' }}"
        "{% elif not (system and loop.first) %}"
        + _REFUSE
        + "{% endif %}"
        + _END
        + "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "chatml": (
        _TURNS
        + "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
        + _END
        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "zephyr": (
        _TURNS
        + "{% if message['role'] not in ('system', 'user', 'assistant') %}"
        + _REFUSE
        + "{% endif %}{{ '<|' + message['role'] + '|>\n' + message['content'] | trim + eos_token + '\n' }}"
        + _END
        + "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "alpaca": (
        "{{ bos_token }}" + _TURNS + "{% if message['role'] == 'assistant' %}"
        "{{ '### Response:\n' + message['content'] | trim + eos_token + '\n\n' }}{% elif message['role'] == 'user' %}"
        "{{ '### Instruction:\n' + message['content'] | trim + '\n\n' }}{% elif message['role'] == 'system' and loop.first %}"
        "{{ message['content'] | trim + '\n\n' }}{% else %}"
        + _REFUSE
        + "{% endif %}"
        + _END
        + "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
}
