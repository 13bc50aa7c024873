"""Small chat templates in the style of well-known model families, and a byte-level tokenizer for each.

Each keeps what makes its family's template difficult: the thought that an invitation opens, the turns that later ones rewrite, the text
after the end token. The texts are our own.
"""

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Style:
    """template: its text. special: control tokens; eos: the one that ends an answer; bos: the first token, if there is one."""

    template: str
    special: tuple[str, ...]
    eos: str
    bos: str | None = None

    def tokenizer(self, template: str | None = None) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330, special_tokens=list(self.special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(["the sky is blue and the grass is green\n\n"] * 20, trainer)
        tokenizer.add_tokens([AddedToken(tag, special=False) for tag in ("<think>", "</think>")])
        others = [token for token in self.special if token not in (self.eos, self.bos)]
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token=self.eos, bos_token=self.bos, extra_special_tokens=others,
            chat_template=template or self.template,
        )  # fmt: skip


# Thoughts stay until the next user turn. An answer without a thought gets an empty one. With enable_thinking: false no thought is opened.
QWEN3 = Style(
    """{%- set ns = namespace(query=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.query = loop.index0 %}{% endif %}{% endfor %}
{%- if tools %}{{ '<|im_start|>system\nTools: ' + tools | tojson + '<|im_end|>\n' }}{% endif %}
{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'assistant' %}
{%- set thought = message.reasoning_content or '' %}
{%- if not thought and '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.query and (loop.last or thought) %}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}
{{- content }}
{%- for call in message.tool_calls or [] %}{{ '\n<tool_call>' + call.function | tojson + '</tool_call>' }}{% endfor %}
{{- '<|im_end|>\n' }}
{%- else %}{{ '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\n' + content + '<|im_end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}""",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>",
)  # fmt: skip

# The invitation opens a thought, and no answer shows one.
R1 = Style(
    """{{ bos_token }}{% for message in messages %}
{%- if message.role == 'system' %}{{ message.content }}{% elif message.role == 'user' %}{{ '<|User|>' + message.content }}
{%- else %}{{ '<|Assistant|>' + message.content.split('</think>')[-1] + '<|end_of_sentence|>' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}""",
    ("<|begin|>", "<|User|>", "<|Assistant|>", "<|end_of_sentence|>"), "<|end_of_sentence|>", "<|begin|>",
)  # fmt: skip

LLAMA3 = Style(
    """{{ bos_token }}{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}
{%- if messages[0].role != 'system' %}{{ '<|start|>system<|stop|>\n\nToday is ' + date_string + '<|eot_id|>' }}{% endif %}
{%- for message in messages %}{{ '<|start|>' + message.role + '<|stop|>\n\n' + message.content | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}""",
    ("<|begin_of_text|>", "<|start|>", "<|stop|>", "<|eot_id|>"), "<|eot_id|>", "<|begin_of_text|>",
)  # fmt: skip

# No system turn: its text stands before the first user turn. Roles must alternate.
GEMMA3 = Style(
    """{{ bos_token }}{% set prefix = '' %}
{%- if messages[0].role == 'system' %}{% set prefix = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' + (prefix if loop.first else '') }}
{{- message.content | trim + '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}""",
    ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>",
)  # fmt: skip

# A conversation that is not continued ends with one token more.
PHI4 = Style(
    """{% for message in messages %}{{ '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% else %}{{ eos_token }}{% endif %}""",
    ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"), "<|endoftext|>",
)  # fmt: skip

# No invitation; the system prompt and the tools stand in the last user turn. Roles must alternate.
MISTRAL = Style(
    """{{ bos_token }}{% set system = '' %}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}
{%- set ns = namespace(user=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.user = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('After the optional system message, conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- if message.role == 'user' %}{{ '[INST]' + (system if loop.index0 == ns.user else '') + message.content + '[/INST]' }}
{%- else %}{{ ' ' + message.content | trim + eos_token }}{% endif %}{% endfor %}""",
    ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "<s>",
)  # fmt: skip

STYLES = {"qwen3": QWEN3, "r1": R1, "llama3": LLAMA3, "gemma3": GEMMA3, "phi4": PHI4, "mistral": MISTRAL}
