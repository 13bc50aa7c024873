"""A small byte-level BPE tokenizer with a ChatML template: it merges, encodes any text, and has special tokens.

With `add_special_tokens` it puts a first token before every text, as Llama's do. No template may produce that token.
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = [
    "What is the capital of France?\n\nThe capital of France is Paris.\n\n",
    "user\nassistant\nsystem\nYou are a helpful assistant.\n",
    "\n\n" * 20,
] * 4
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chatml_tokenizer(text: list[str] = TEXT, template: str | None = TEMPLATE, eos: str | None = "<|endoftext|>") -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, extra_special_tokens=SPECIAL[1:], chat_template=template)
