"""Chat templates for models that come without one, by name.

Answers stand in {% generation %} blocks, each with what ends it.
"""

_SYSTEM = "{% if message.role == 'system' %}"
_SAID = "{% if message.role == 'assistant' %}"
_INPUT = "{% if message.input %}{{ '\\n\\n' + message.input }}{% endif %}"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    + _SAID
    + "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message.content }}" + _INPUT + "{{ '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}"
    + _SAID
    + "{% generation %}{{ message.content | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ message.content | trim }}" + _INPUT + "{{ '<|eot_id|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% set system = namespace(text='') %}{% for message in messages %}"
    + _SYSTEM
    + "{% set system.text = message.content + '\\n\\n' %}"
    "{% elif message.role == 'assistant' %}"
    "{% generation %}{{ ' ' + message.content | trim + eos_token }}{% endgeneration %}"
    "{% else %}{{ '[INST] ' + system.text + message.content }}" + _INPUT + "{{ ' [/INST]' }}"
    "{% set system.text = '' %}{% endif %}"
    "{% endfor %}"
)
_ALPACA = (
    "Below is an instruction that describes a task{{ ', paired with an input that provides "
    "further context' if message.input else '' }}. Write a response that appropriately completes "
    "the request.\\n\\n### Instruction:\\n"
)
ALPACA = (
    "{{ bos_token or '' }}{% for message in messages %}"
    + _SYSTEM
    + "{{ message.content + '\\n\\n' }}"
    "{% elif message.role == 'assistant' %}{% generation %}{{ message.content + eos_token }}"
    "{% endgeneration %}{{ '\\n\\n' if not loop.last }}"
    "{% else %}"
    + _ALPACA.replace("\\n", "\n")
    + "{{ message.content }}{% if message.input %}{{ '\\n\\n### Input:\\n' + message.input }}"
    "{% endif %}{{ '\\n\\n### Response:\\n' }}{% endif %}"
    "{% endfor %}"
)
PLAIN = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content + eos_token }}"
    "{% endgeneration %}{{ '\\n' if not loop.last }}"
    "{% else %}{{ message.content }}" + _INPUT + "{{ '\\n' }}{% endif %}"
    "{% endfor %}"
)

BUILTIN = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "alpaca": ALPACA,
    "plain": PLAIN,
}
"""ChatML (OpenAI 2023), Llama 3's, Mistral 7B's, Alpaca's (Taori et al. 2023), and none."""
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}
"""What ends an answer, where that is not the tokenizer's end token."""
